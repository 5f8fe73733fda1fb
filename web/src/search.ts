// Find words in a long text, and go from one place to the next.

import { el } from "./dom.ts";

export class Search {
  readonly element: HTMLElement;
  hits: number[] = [];
  private at = -1;
  private readonly field = el("input", { type: "search", placeholder: "Find a word", "aria-label": "Find a word in the text", "data-focus": "search" });
  private readonly count = el("span", { class: "quiet count", role: "status" });

  /** `find` gives the tokens of what is written in the field; `go` is called with each that is visited. */
  constructor(
    private readonly find: (wanted: string) => number[],
    private readonly go: (token: number | null) => void,
  ) {
    this.field.addEventListener("input", () => {
      this.hits = this.find(this.field.value);
      this.at = -1;
      this.step(1);
    });
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.step(event.shiftKey ? -1 : 1);
    });
    const button = (text: string, label: string, by: number) =>
      el("button", { type: "button", class: "plain", "aria-label": label, on: { click: () => this.step(by) } }, text);
    this.element = el(
      "div",
      { class: "search", role: "search", "data-unsaved": true },
      this.field,
      button("‹", "Previous place", -1),
      button("›", "Next place", 1),
      this.count,
    );
  }

  private step(by: number): void {
    const { hits } = this;
    this.at = hits.length ? (this.at + by + hits.length) % hits.length : -1;
    const number = (value: number) => value.toLocaleString("en");
    this.count.textContent = hits.length ? `${number(this.at + 1)} of ${number(hits.length)}` : this.field.value.trim() && "not found";
    this.go(hits.length ? hits[this.at] : null);
  }
}
