import { registerRichText } from "@lexical/rich-text";
import { $createParagraphNode, $createTextNode, $getRoot, createEditor } from "lexical";

const editor = createEditor({ onError: console.error });
registerRichText(editor);
editor.setRootElement(document.querySelector("#editor"));
globalThis.readText = () => editor.getEditorState().read(() => $getRoot().getTextContent());
globalThis.writeText = (text) =>
  editor.update(() => $getRoot().clear().append($createParagraphNode().append($createTextNode(text))), {
    discrete: true,
  });
