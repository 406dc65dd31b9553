import { ContentState, Editor, EditorState } from "draft-js";
import React, { useState } from "react";
import { createRoot } from "react-dom/client";

function App() {
  const [state, setState] = useState(EditorState.createEmpty());
  globalThis.readText = () => state.getCurrentContent().getPlainText();
  globalThis.writeText = (text) => setState(EditorState.createWithContent(ContentState.createFromText(text)));
  return <Editor editorState={state} onChange={setState} placeholder="Write" />;
}
createRoot(document.querySelector("#editor")).render(<App />);
