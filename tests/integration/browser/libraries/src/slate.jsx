import React from "react";
import { createRoot } from "react-dom/client";
import { Node, Transforms, createEditor } from "slate";
import { Editable, Slate, withReact } from "slate-react";

const editor = withReact(createEditor());
const paragraph = (text) => ({ type: "paragraph", children: [{ text }] });
globalThis.readText = () => editor.children.map((node) => Node.string(node)).join("\n");
globalThis.writeText = (text) => {
  Transforms.deselect(editor);
  while (editor.children.length) Transforms.removeNodes(editor, { at: [0] });
  Transforms.insertNodes(editor, paragraph(text), { at: [0] });
};
createRoot(document.querySelector("#editor")).render(
  <Slate editor={editor} initialValue={[paragraph("")]}>
    <Editable placeholder="Write" />
  </Slate>,
);
