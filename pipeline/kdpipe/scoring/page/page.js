"use strict";
// Errors, whatever the policy blocked and the number of requests are written where tests look.
(function () {
  const root = document.documentElement;
  root.dataset.errors = "";
  function note(text) { root.dataset.errors += text + "\n"; }
  window.addEventListener("error", function (event) { note(event.message); });
  document.addEventListener("securitypolicyviolation", function (event) {
    note("blocked: " + event.violatedDirective + " " + event.blockedURI);
  });

  window.addEventListener("load", function () {
    root.dataset.requests = String(performance.getEntriesByType("resource").length);
  });

  function makeTabs(box) {
    const panels = Array.from(box.children).filter((child) => child.dataset.tab !== undefined);
    const list = document.createElement("div");
    list.className = "tablist";
    list.setAttribute("role", "tablist");
    const buttons = panels.map(function (panel) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = panel.dataset.tab;
      button.setAttribute("role", "tab");
      button.setAttribute("aria-controls", panel.id);
      panel.setAttribute("role", "tabpanel");
      button.addEventListener("click", () => choose(button));
      list.append(button);
      return button;
    });
    function choose(chosen) {
      buttons.forEach(function (button, i) {
        button.setAttribute("aria-selected", String(button === chosen));
        button.tabIndex = button === chosen ? 0 : -1;
        panels[i].hidden = button !== chosen;
      });
    }
    list.addEventListener("keydown", function (event) {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const place = buttons.indexOf(document.activeElement);
      if (step === undefined || place < 0) { return; }
      const next = buttons[(place + step + buttons.length) % buttons.length];
      choose(next);
      next.focus();
    });
    box.prepend(list);
    box.classList.add("tabbed");
    choose(buttons[0]);
  }

  function makeTips() {
    const tip = document.createElement("div");
    tip.id = "tip";
    tip.hidden = true;
    tip.setAttribute("role", "status");
    document.body.append(tip);
    function show(event) {
      const target = event.target.closest("[data-tip]");
      tip.hidden = target === null;
      if (target === null) { return; }
      tip.textContent = target.dataset.tip;
      const box = target.getBoundingClientRect();
      const wide = root.clientWidth;
      const left = Math.min(Math.max(box.left + box.width / 2 - tip.offsetWidth / 2, 8),
        wide - tip.offsetWidth - 8);
      const above = box.top - tip.offsetHeight - 8;
      tip.style.left = left + window.scrollX + "px";
      tip.style.top = (above < 4 ? box.bottom + 8 : above) + window.scrollY + "px";
    }
    document.addEventListener("pointerover", show);
    document.addEventListener("click", show);
  }

  document.addEventListener("DOMContentLoaded", function () {
    document.querySelectorAll("[data-tabs]").forEach(makeTabs);
    makeTips();
    root.dataset.ready = "yes";
  });
})();
