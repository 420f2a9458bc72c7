// Making elements. Children that are strings become text nodes: HTML in them stays text.

export function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const PATHS = {
  up: "M6.5 9v7.5H3.5V9zM6.5 9.3 10 2.8c1.4 0 2.2 1.1 1.9 2.4L11.3 8h4.2c1 0 1.7.9 1.5 1.9l-1.1 5.2a1.7 1.7 0 0 1-1.7 1.4H6.5",
  down: "M6.5 11V3.5H3.5V11zM6.5 10.7 10 17.2c1.4 0 2.2-1.1 1.9-2.4L11.3 12h4.2c1 0 1.7-.9 1.5-1.9l-1.1-5.2a1.7 1.7 0 0 0-1.7-1.4H6.5",
  copy: "M7.5 7.5h8.5v8.5H7.5zM12.5 7.5V4H4v8.5h3.5",
  done: "M4.5 10.5 8.5 14.5 15.5 6",
};

export function mark(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}
