// The row of boxes: which layers each holds, what fills its tiers, and how busy it is.

import { byId, keyed, make, setText } from './dom.js';
import * as format from './format.js';

const list = byId('boxes');

function stageText(box) {
  if (!box.stage) return 'no stage';
  const { first_layer: first, end_layer: end, embeds, has_head: head } = box.stage;
  const layers = end - first === 1 ? `layer ${first}` : `layers ${first}–${end - 1}`;
  return [embeds ? 'embedding' : '', layers, head ? 'head' : ''].filter(Boolean).join(', ');
}

/** Of a stage that leaves experts on its disk, or out of its card's memory; '' of another one. */
function expertsText(box) {
  if (box.expert_slots === 0) return '';
  const memory = `memory for ${box.expert_slots} of ${box.experts} experts`;
  if (box.card_experts) {
    const { hit_share: hits, copied_share: copied, on_cpu_share: cpu } = box.card_experts;
    return `${memory}, ${format.percent(hits)} hits, ${format.percent(copied)} copied, ${format.percent(cpu)} on the CPU`;
  }
  if (box.expert_hit_share === null) return memory;
  return `${memory}, ${format.percent(box.expert_hit_share)} hits`;
}

/** What the text has no room for. */
function expertsTitle(box) {
  if (!box.card_experts) return '';
  const { promotions, copied_bytes: bytes } = box.card_experts;
  const below = box.expert_hit_share === null ? '' : `; of the others ${format.percent(box.expert_hit_share)} were in the host's memory`;
  return `${format.count(promotions)} promoted, ${format.bytes(bytes)} copied to the card${below}`;
}

/** Between CPUs there is only one way, which goes without saying. */
function hopText(box) {
  return box.on_card && box.next_hop ? `sends on over ${box.next_hop.transport}` : '';
}

function stateText(box) {
  if (box.state === 'loading') return `loading ${format.percent(box.loaded_share)}`;
  return box.state;
}

function createTier() {
  return make('div', { className: 'tier' }, make('span', { className: 'tier-name' }),
    make('span', { className: 'tier-text' }), make('div', { className: 'fill', role: 'img' }));
}

function updateTier(element, tier) {
  const [name, text, fill] = element.children;
  const used = tier.parts.reduce((sum, part) => sum + part.bytes, 0);
  setText(name, tier.tier);
  setText(text, `${format.bytes(used)} of ${format.bytes(tier.total_bytes)}`);
  const said = tier.parts.map((part) => `${part.what} ${format.bytes(part.bytes)}`).join(', ');
  fill.setAttribute('aria-label', `${tier.tier}: ${said}`);
  fill.title = said;
  keyed(fill, tier.parts, (part) => part.what,
    (part) => make('i', { className: part.what.toLowerCase().replaceAll(' ', '-') }),
    (bar, part) => {
      const share = tier.total_bytes > 0 ? part.bytes / tier.total_bytes : 0;
      bar.style.flexBasis = `${100 * share}%`;
    });
}

function createBox() {
  return make('li', { className: 'box' },
    make('div', { className: 'box-head' }, make('span', { className: 'stage-number' }),
      make('h3'), make('span', { className: 'box-state' })),
    make('p', { className: 'box-stage' }),
    make('p', { className: 'box-address note' }),
    make('p', { className: 'box-experts note', hidden: true }),
    make('p', { className: 'box-hop note', hidden: true }),
    make('div', { className: 'tiers' }),
    make('div', { className: 'busy' }, make('span', {}, 'Busy'), make('b'),
      make('div', { className: 'fill', ariaHidden: 'true' }, make('i', { className: 'busy-bar' }))));
}

function updateBox(element, box, index) {
  element.dataset.state = box.state;
  const [head, stage, address, experts, hop, tiers, busy] = element.children;
  setText(head.children[0], box.stage ? String(index) : '');
  setText(head.children[1], box.name);
  setText(head.children[2], stateText(box));
  setText(stage, stageText(box));
  setText(address, `${box.device} · ${box.address}`);
  setText(experts, expertsText(box));
  experts.hidden = box.expert_slots === 0;
  experts.title = expertsTitle(box);
  setText(hop, hopText(box));
  hop.hidden = hop.textContent === '';
  hop.title = box.next_hop ? `to ${box.next_hop.to}: ${box.next_hop.why}` : '';
  head.children[1].title = box.name;
  address.title = address.textContent;
  keyed(tiers, box.tiers, (tier) => tier.tier, createTier, updateTier);
  const share = box.busy_share ?? 0;
  setText(busy.children[1], format.percent(box.busy_share));
  busy.children[2].firstElementChild.style.flexBasis = `${100 * share}%`;
}

function placeholder(text) {
  const existing = list.querySelector('.placeholder');
  if (existing) {
    setText(existing.firstElementChild, text);
    return;
  }
  list.replaceChildren(make('li', { className: 'placeholder' }, make('p', { className: 'empty' }, text)));
}

/** `data` is null before the first answer. */
export function showBoxes(data) {
  if (!data) return placeholder('Waiting for the coordinator');
  if (data.boxes.length === 0) {
    return placeholder(`No boxes yet. The coordinator is ${data.state}; start one with: caravan worker --coordinator HOST:PORT`);
  }
  list.querySelector('.placeholder')?.remove();
  let index = 0;
  keyed(list, data.boxes, (box) => box.worker_id, createBox,
    (element, box) => updateBox(element, box, box.stage ? index++ : -1));
}
