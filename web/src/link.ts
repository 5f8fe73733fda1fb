// The state of a page in its address, behind the #: a link restores it, and nothing is sent anywhere.

export const readHash = (): Map<string, string> => new Map(new URLSearchParams(location.hash.slice(1)));

/** Write the state into the address without a step in the history; what is empty is left out. */
export function writeHash(state: Record<string, string>): void {
  const query = new URLSearchParams(Object.entries(state).filter(([, value]) => value !== "")).toString();
  if (query === location.hash.slice(1)) return;
  try {
    history.replaceState(null, "", query ? `#${query}` : location.pathname + location.search);
  } catch {
    // A page in a frame of its own origin (a notebook's output) has no address to write to.
  }
}

/** Call `restore` when the address changes by other means than `writeHash`: a link followed, a step back. */
export const onHash = (restore: () => void): void => addEventListener("hashchange", restore);
