// Typing into editors: elements that can be edited, and the fields of code editors that are not drawn.

// Return "rich" or "code" for an editor, "" for any other element.
function editorKind(element) {
  if (!(element instanceof HTMLElement)) return "";
  if (element.editContext || (element instanceof HTMLTextAreaElement && isUndrawn(element))) return "code";
  if (!isEditable(element)) return "";
  return isCode(element) ? "code" : "rich";
}

function isFocused(element) {
  const focus = innermostFocus();
  return Boolean(focus) && (isWithin(focus, element) || isWithin(element, focus)) && focus !== ofDocument("body");
}

// Return the text of an editor as it is drawn, without a placeholder.
function editorText(element) {
  const isPlaceholder = (each) => getComputedStyle(each).pointerEvents === "none" && each.innerText;
  const placeholder = isEditable(element) && [...findAll(element, "[contenteditable=false]")].find(isPlaceholder);
  if (placeholder && collapse(placeholder.innerText) === collapse(element.innerText)) return "";
  if (isEditable(element)) return element.innerText;
  return drawnText(drawingBox(element) ?? element).lines.map((line) => line.text).join("\n");
}

// Return the text that the editor would copy: a code editor draws a part of its text only. Empty if it copies nothing.
function copiedText(element) {
  const clipboardData = new DataTransfer();
  const options = { clipboardData, bubbles: true, cancelable: true, composed: true };
  (innermostFocus() ?? element).dispatchEvent(new ClipboardEvent("copy", options));
  return clipboardData.getData("text/plain") || (isEditable(element) ? "" : element.value ?? "");
}

const squeezed = (text) => text.replace(/[\s\u200b\ufeff]/g, "");
let isPasteHandled = false; // whether the page has code of its own for the last paste
let hasPasted = false; // whether a text was pasted since the last reading

// Return what the page asked a person for. That an editor looks for more in the clipboard when a text is pasted is
// nothing that the model needs to know.
function takeOtherPrompts() {
  const asked = takePrompts().split("\n");
  const others = asked.filter((line) => !(hasPasted && line.startsWith("clipboard")));
  hasPasted = false;
  return others.join("\n");
}

// Ways to insert a text. They return whether they suit the editor.
const INSERTIONS = {
  // As a person pastes. Most editors have code of their own for it.
  paste(text) {
    const clipboardData = new DataTransfer();
    clipboardData.setData("text/plain", text);
    const options = { clipboardData, bubbles: true, cancelable: true, composed: true };
    hasPasted = true;
    isPasteHandled = innermostFocus()?.dispatchEvent(new ClipboardEvent("paste", options)) === false;
    return true;
  },

  // As the browser types. Editors that follow the changes of the document understand it; in others, which handle every
  // paste themselves, such changes break what they draw.
  commands(text) {
    if (isPasteHandled) return false;
    text.split("\n").forEach((line, number) => {
      if (number) document.execCommand("insertParagraph");
      if (line) document.execCommand("insertText", false, line);
    });
    return true;
  },
};

Object.assign(api, {
  editorKind: (number) => ({ kind: editorKind(requireField(number)) }),

  // Focus an editor. Return whether it has the focus.
  focusEditor(number) {
    const element = requireField(number);
    if (!isFocused(element)) focusOn(element);
    return { focused: isFocused(element) };
  },

  // Select all of an editor if its own selection (Control+A) does not cover it.
  selectEditor(number) {
    const element = requireField(number);
    if (!isEditable(element)) return;
    const selection = getSelection();
    if (squeezed(selection.toString()) !== squeezed(element.innerText)) selection.selectAllChildren(element);
  },

  // Return whether the selected text of a code editor can be copied: a terminal has a field too, but no selection.
  isSelected(number) {
    const element = requireField(number);
    return { isSelected: Boolean((isEditable(element) && String(getSelection())) || copiedText(element)) };
  },

  // Return whether the page shows a text, although the editor does not: some split a text into several fields.
  isAround(number, text) {
    const inside = squeezed(editorText(requireField(number))).includes(squeezed(text));
    return { isAround: !inside && squeezed(ofDocument("body").innerText).includes(squeezed(text)) };
  },

  insertIntoEditor: (how, text) => ({ isDone: INSERTIONS[how](text) }),

  // Return the text of an editor. `copied`: its selected text as it is copied, if it copies anything.
  editorText(number, copied) {
    const element = requireField(number);
    return { text: (copied && copiedText(element)) || editorText(element) };
  },
});
