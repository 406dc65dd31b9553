import * as ui from "@headlessui/react";
import React, { useState } from "react";
import { createRoot } from "react-dom/client";

const fruits = ["Apple", "Banana", "Cherry"];

function App() {
  const [fruit, setFruit] = useState("Apple");
  const [snack, setSnack] = useState(null);
  const [query, setQuery] = useState("");
  globalThis.chosen = fruit;
  globalThis.snack = snack;
  const matching = fruits.filter((each) => each.toLowerCase().includes(query.toLowerCase()));
  return (
    <>
      <ui.Field>
        <ui.Label>Fruit</ui.Label>
        <ui.Listbox value={fruit} onChange={setFruit}>
          <ui.ListboxButton>{fruit}</ui.ListboxButton>
          <ui.ListboxOptions anchor="bottom">
            {fruits.map((each) => (
              <ui.ListboxOption key={each} value={each}>
                {each}
              </ui.ListboxOption>
            ))}
          </ui.ListboxOptions>
        </ui.Listbox>
      </ui.Field>
      <ui.Combobox value={snack} onChange={setSnack}>
        <ui.ComboboxInput aria-label="Snack" onChange={(event) => setQuery(event.target.value)} />
        <ui.ComboboxOptions anchor="bottom">
          {matching.map((each) => (
            <ui.ComboboxOption key={each} value={each}>
              {each}
            </ui.ComboboxOption>
          ))}
        </ui.ComboboxOptions>
      </ui.Combobox>
    </>
  );
}
createRoot(document.querySelector("#app")).render(<App />);
