import * as Select from "@radix-ui/react-select";
import React from "react";
import { createRoot } from "react-dom/client";

const fruits = ["Apple", "Banana", "Cherry"];
createRoot(document.querySelector("#app")).render(
  <>
    <label htmlFor="fruit">Fruit</label>
    <Select.Root onValueChange={(value) => (globalThis.chosen = value)}>
      <Select.Trigger id="fruit">
        <Select.Value placeholder="Select a fruit" />
        <Select.Icon />
      </Select.Trigger>
      <Select.Portal>
        <Select.Content>
          <Select.Viewport>
            {fruits.map((fruit) => (
              <Select.Item key={fruit} value={fruit}>
                <Select.ItemText>{fruit}</Select.ItemText>
              </Select.Item>
            ))}
          </Select.Viewport>
        </Select.Content>
      </Select.Portal>
    </Select.Root>
  </>,
);
