import { Autocomplete, FormControl, InputLabel, MenuItem, Select, TextField } from "@mui/material";
import React, { useState } from "react";
import { createRoot } from "react-dom/client";

const fruits = ["Apple", "Banana", "Cherry"];

function App() {
  const [fruit, setFruit] = useState("Apple");
  const [snacks, setSnacks] = useState(["Apple"]);
  globalThis.chosen = fruit;
  globalThis.snacks = snacks;
  const items = fruits.map((each) => (
    <MenuItem key={each} value={each}>
      {each}
    </MenuItem>
  ));
  return (
    <>
      <FormControl sx={{ m: 1, width: 200 }}>
        <InputLabel id="fruit">Fruit</InputLabel>
        <Select labelId="fruit" id="fruit-select" label="Fruit" value={fruit} onChange={(e) => setFruit(e.target.value)}>
          {items}
        </Select>
      </FormControl>
      <FormControl sx={{ m: 1, width: 200 }}>
        <InputLabel id="snacks">Snacks</InputLabel>
        <Select multiple labelId="snacks" label="Snacks" value={snacks} onChange={(e) => setSnacks(e.target.value)}>
          {items}
        </Select>
      </FormControl>
      <Autocomplete
        options={["Red", "Green", "Blue"]}
        onChange={(_, color) => (globalThis.color = color)}
        renderInput={(props) => <TextField {...props} label="Color" />}
      />
    </>
  );
}
createRoot(document.querySelector("#app")).render(<App />);
