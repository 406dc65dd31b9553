import React from "react";
import { createRoot } from "react-dom/client";
import Select from "react-select";

const fruits = ["Apple", "Banana", "Cherry"].map((each) => ({ value: each, label: each }));
createRoot(document.querySelector("#app")).render(
  <>
    <label htmlFor="fruit">Fruit</label>
    <Select inputId="fruit" options={fruits} onChange={({ value }) => (globalThis.chosen = value)} />
    <Select isMulti aria-label="Tags" defaultValue={[fruits[0]]} options={fruits}
      onChange={(values) => (globalThis.tags = values.map(({ value }) => value))} />
    <Select isSearchable={false} aria-label="Fixed" defaultValue={fruits[1]} options={fruits} />
  </>,
);
