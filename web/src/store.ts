// What every page has in common: a state, the panels that follow it, and messages for screen readers.

import { keepFocus } from "./dom.ts";

/** Which parts of a state changed. */
export type ChangedOf<Key> = ReadonlySet<Key>;

export interface PanelOf<Key> {
  element: HTMLElement;
  update(changed: ChangedOf<Key>): void;
  shown?(): void; // called once, when the panel is on the page and has a size
}

/** Whether any of these parts of the state changed. */
export const any = <Key>(changed: ChangedOf<Key>, ...keys: NoInfer<Key>[]): boolean => keys.some((key) => changed.has(key));

/**
 * A state and the panels that follow it; `Signal` names what panels follow beside the parts of the state.
 *
 * `changed` is called behind every change, to write the address.
 */
export class Store<State extends object, Signal extends string = never> {
  protected readonly panels: PanelOf<keyof State | Signal>[] = [];

  constructor(
    public state: State,
    private readonly status: HTMLElement,
    private readonly changed: (state: State) => void,
  ) {}

  add(panel: PanelOf<keyof State | Signal>): HTMLElement {
    this.panels.push(panel);
    return panel.element;
  }

  set(patch: Partial<State>): void {
    const changed = new Set<keyof State | Signal>();
    for (const key of Object.keys(patch) as (keyof State)[]) if (this.state[key] !== patch[key]) changed.add(key);
    if (!changed.size) return;
    this.state = { ...this.state, ...patch };
    keepFocus(() => this.following(changed).forEach((panel) => panel.update(changed)));
    this.changed(this.state);
  }

  /** The panels that such a change concerns. */
  protected following(_: ChangedOf<keyof State | Signal>): PanelOf<keyof State | Signal>[] {
    return this.panels;
  }

  /** Call the panels' `shown`, once they are on the page. */
  shown(): void {
    for (const panel of this.panels) panel.shown?.();
  }

  /** Announce a text to screen readers. */
  say(text: string): void {
    this.status.textContent = text;
  }
}
