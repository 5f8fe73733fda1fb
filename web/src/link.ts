// The state of a page in its address, behind the #: a link restores it, and nothing is sent anywhere.

const PAUSE = 120; // milliseconds: browsers refuse more than a few addresses a second

let waiting = 0;

export const readHash = (): Map<string, string> => new Map(new URLSearchParams(location.hash.slice(1)));

/** Write a state into the address a moment later, without a step in the history; what is empty is left out. */
export function writeHash(state: () => Record<string, string>): void {
  clearTimeout(waiting);
  waiting = window.setTimeout(() => {
    const query = new URLSearchParams(Object.entries(state()).filter(([, value]) => value !== "")).toString();
    if (query === location.hash.slice(1)) return;
    try {
      history.replaceState(null, "", query ? `#${query}` : location.pathname + location.search);
    } catch {
      // A page in a frame of its own origin (a notebook's output) has no address to write to.
    }
  }, PAUSE);
}

/** Call `restore` when the address changes by other means than `writeHash`: a link followed, a step back. */
export const onHash = (restore: () => void): void => addEventListener("hashchange", restore);
