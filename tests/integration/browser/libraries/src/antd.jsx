import { Select, Slider } from "antd";
import React from "react";
import { createRoot } from "react-dom/client";

const fruits = ["Apple", "Banana", "Cherry"].map((each) => ({ value: each, label: each }));
const many = Array.from({ length: 1000 }, (_, number) => ({ value: number, label: `Option ${number}` }));
const style = { width: 250 };
createRoot(document.querySelector("#app")).render(
  <>
    <label htmlFor="fruit">Fruit</label>
    <Select id="fruit" style={style} defaultValue="Apple" options={fruits} onChange={(value) => (globalThis.chosen = value)} />
    <Select showSearch aria-label="Many" placeholder="Pick one" style={style} options={many} optionFilterProp="label"
      onChange={(value) => (globalThis.many = value)} />
    <Select mode="multiple" aria-label="Tags" style={style} defaultValue={["Apple"]} options={fruits}
      onChange={(values) => (globalThis.tags = values)} />
    <Slider range step={5} defaultValue={[20, 80]} ariaLabelForHandle={["Low", "High"]} style={style}
      onChange={(values) => (globalThis.limits = values)} />
  </>,
);
