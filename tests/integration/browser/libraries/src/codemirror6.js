import { python } from "@codemirror/lang-python";
import { EditorView, basicSetup } from "codemirror";

const view = new EditorView({ extensions: [basicSetup, python()], parent: document.querySelector("#editor") });
globalThis.readText = () => view.state.doc.toString();
globalThis.writeText = (text) => view.dispatch({ changes: { from: 0, to: view.state.doc.length, insert: text } });
