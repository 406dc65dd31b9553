import { Editor } from "@tiptap/core";
import StarterKit from "@tiptap/starter-kit";

const editor = new Editor({ element: document.querySelector("#editor"), extensions: [StarterKit] });
globalThis.readText = () => editor.getText({ blockSeparator: "\n" });
globalThis.writeText = (text) => editor.commands.setContent(`<p>${text}</p>`);
