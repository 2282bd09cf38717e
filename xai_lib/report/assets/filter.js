// The ledger's filter: rows that fit the chosen study and verdict stay, and a claim without a row left is hidden.
"use strict";
{
  const form = document.getElementById("filter");
  const claims = document.querySelectorAll("#ledger tbody");
  const wanted = new URLSearchParams(location.search);
  for (const name of ["study", "verdict"]) {
    if (wanted.has(name)) form.elements[name].value = wanted.get(name);
  }
  const apply = () => {
    const study = form.elements.study.value;
    const verdict = form.elements.verdict.value;
    let shown = 0;
    for (const claim of claims) {
      let left = 0;
      for (const row of claim.querySelectorAll("tr[data-verdict]")) {
        row.hidden = (study && claim.dataset.study !== study) || (verdict && row.dataset.verdict !== verdict);
        left += row.hidden ? 0 : 1;
      }
      claim.hidden = left === 0;
      shown += left;
    }
    document.getElementById("shown").textContent = shown + " of " + form.dataset.rows + " rows";
  };
  form.addEventListener("change", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.hidden = false;
  apply();
}
