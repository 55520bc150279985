// Small helpers for building and updating the page.

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** A new element: make('p', { className: 'note' }, 'text', child). */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Sets the text only when it changed, so that a screen reader is not told the same thing again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Brings `parent`'s children in line with `items`, keeping the elements of those that stay: focus and
 * selection live on them. `create(item)` makes an element, `update(element, item)` fills it in.
 */
export function keyed(parent, items, keyOf, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let element = old.get(key);
    old.delete(key);
    if (!element) {
      element = create(item);
      element.dataset.key = key;
    }
    update(element, item);
    if (element === at) {
      at = at.nextElementSibling;
    } else {
      parent.insertBefore(element, at);
    }
  }
  for (const gone of old.values()) gone.remove();
}
