// What pages do beyond what the server draws. Without it they work as well: see templates/shared/ui.html.
// Everything listens at the document, since htmx replaces parts of the page.
(() => {
  'use strict'
  const find = (selector, within = document) => within.querySelector(selector)
  const all = (selector, within = document) => [...within.querySelectorAll(selector)]
  const byId = id => document.getElementById(id)
  const say = (id, text) => { const place = byId(id); if (place && place.textContent !== text) place.textContent = text }
  const isDialogOpen = () => find('dialog[open]') !== null
  document.documentElement.classList.add('js')

  // --- Copying ---

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text)
    } catch { // over plain HTTP browsers have no clipboard, but for this
      const area = Object.assign(document.createElement('textarea'), { value: text, className: 'unseen' })
      const place = find('dialog[open]') ?? document.body
      place.append(area)
      area.select()
      const done = document.execCommand('copy')
      area.remove()
      if (!done) throw new Error('the browser does not let us')
    }
  }

  async function copyOf(button) {
    const from = button.dataset.copyFrom
    const source = from && byId(from)
    const text = source ? (source.value ?? source.textContent) : button.dataset.copy
    const label = (button.dataset.label ??= button.textContent)
    let said = 'Copied'
    try { await copy(text) } catch { said = 'Select it and copy it by hand' }
    button.focus()
    button.textContent = said
    say('announced', said)
    setTimeout(() => { button.textContent = label; say('announced', '') }, 2000)
  }

  // --- Selecting rows: boxes of a form, all on the page, or all that match ---

  const boxes = form => all(`[data-select="${form}"]`)
  let last = null // the box that was clicked last: where a range begins

  function pick(box, event) {
    const own = boxes(box.dataset.select)
    const from = own.indexOf(last), to = own.indexOf(box)
    if (event.shiftKey && from >= 0) {
      for (const one of own.slice(Math.min(from, to), Math.max(from, to) + 1)) one.checked = box.checked
    }
    last = box
    showSelection(box.dataset.select)
  }

  function showSelection(form) {
    const line = find(`[data-selection="${form}"]`)
    const every = find(`[data-all="${form}"]`)
    const own = boxes(form), picked = own.filter(one => one.checked).length
    const isWhole = own.length > 0 && picked === own.length
    const head = find(`[data-select-all="${form}"]`)
    if (every && !isWhole) every.checked = false
    if (head) Object.assign(head, { checked: isWhole, indeterminate: picked > 0 && !isWhole })
    for (const one of own) one.closest('tr')?.classList.toggle('picked', one.checked)
    if (!line) return
    find('[data-all-matching]', line).hidden = !isWhole
    const number = picked.toLocaleString('en')
    find('[data-selected]', line).textContent =
      every?.checked ? 'All that match are selected.' : picked ? `${number} on this page selected.` : ''
    for (const button of all('[data-needs-selection]', line.closest('form') ?? document)) button.disabled = !picked
  }

  const showSelections = () => all('[data-selection]').forEach(line => showSelection(line.dataset.selection))
  const isSelecting = () => find('[data-select]:checked') !== null

  // --- Asking first, and sending a form once ---

  function ask(text, label) {
    const dialog = byId('confirm')
    byId('confirm-text').textContent = text
    find('[value="yes"]', dialog).textContent = label
    dialog.returnValue = ''
    dialog.showModal()
    return new Promise(done =>
      dialog.addEventListener('close', () => done(dialog.returnValue === 'yes'), { once: true }))
  }

  document.addEventListener('submit', async event => {
    const form = event.target, button = event.submitter
    if (form.method !== 'post') return
    if (form.dataset.sent) return event.preventDefault() // a second click while the first is under way
    const text = button?.dataset.confirm ?? form.dataset.confirm
    if (text && !form.dataset.confirmed) {
      event.preventDefault()
      if (!await ask(text, button?.textContent.trim() || 'Go on')) return
      form.dataset.confirmed = 'yes'
      form.requestSubmit(button)
      return delete form.dataset.confirmed
    }
    form.dataset.sent = 'yes'
    setTimeout(() => delete form.dataset.sent, 5000) // somebody may have stopped it
  })
  addEventListener('pageshow', () => all('form[data-sent]').forEach(form => delete form.dataset.sent))

  // --- Keys ---

  const OFF = 'hookwright.keys' // the only thing that is kept in the browser
  const areKeysOn = () => { try { return localStorage.getItem(OFF) !== 'off' } catch { return true } }
  let rowKey = null // of the row that keys are at

  const rows = () => all('tr[data-row]')
  const currentRow = () =>
    document.activeElement?.closest('tr[data-row]') ?? rows().find(row => row.dataset.row === rowKey)

  function goTo(row) {
    if (!row) return
    rowKey = row.dataset.row
    row.tabIndex = -1
    row.focus()
    row.scrollIntoView({ block: 'nearest' })
  }

  function move(by) {
    const own = rows(), at = own.indexOf(currentRow())
    goTo(own[at < 0 ? 0 : Math.min(Math.max(at + by, 0), own.length - 1)])
  }

  const keys = {
    j: () => move(1),
    k: () => move(-1),
    x: () => { const row = currentRow(); if (row) find('[data-select]', row)?.click(); goTo(row) },
    '/': () => (find('main :is([data-search], .filters input:not([type="hidden"]))') ?? find('[data-search]'))?.focus(),
    '?': () => byId('keys-help').showModal(),
    Enter: () => { if (document.activeElement?.matches('tr[data-row]')) find('a[href]', document.activeElement)?.click() },
  }

  document.addEventListener('keydown', event => {
    const isText = event.target.closest?.('input:not([type="checkbox"], [type="radio"]), textarea, select, [contenteditable]')
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || isText || isDialogOpen()) return
    if (!areKeysOn()) return
    const marked = event.key.length === 1 && find(`[data-key="${CSS.escape(event.key)}"]:not(:disabled)`)
    const does = keys[event.key] ?? (marked && (() => marked.click()))
    if (!does) return
    if (event.key !== 'Enter') event.preventDefault()
    does()
  })

  // --- Clicks and changes ---

  document.addEventListener('click', event => {
    const on = selector => event.target.closest?.(selector)
    let found
    if ((found = on('[data-copy], [data-copy-from]'))) copyOf(found)
    else if ((found = on('[data-open]'))) byId(found.dataset.open).showModal()
    else if ((found = on('[data-select]'))) pick(found, event)
    else if ((found = on('[data-select-all]'))) {
      for (const one of boxes(found.dataset.selectAll)) one.checked = found.checked
      showSelection(found.dataset.selectAll)
    } else if ((found = on('[data-all]'))) showSelection(found.dataset.all)
  })

  document.addEventListener('change', event => {
    if (!event.target.matches('[data-keys]')) return
    try { localStorage.setItem(OFF, event.target.checked ? 'on' : 'off') } catch { /* then they stay as they are */ }
  })

  // --- Running down ---

  function tick() {
    for (const one of all('[data-countdown]')) {
      const seconds = Math.ceil((Date.parse(one.dateTime) - Date.now()) / 1000)
      const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24)
      const text = seconds <= 0 ? 'now' : seconds < 60 ? `in ${seconds} s` : minutes < 60 ? `in ${minutes} min ${seconds % 60} s`
        : hours < 48 ? `in ${hours} h ${minutes % 60} min` : `in ${days} d ${hours % 24} h`
      if (one.textContent !== text) one.textContent = text
    }
  }

  // --- Parts that keep themselves fresh ---

  const LOST = 'This could not be refreshed; trying again.'
  const ENDED = 'Your session has ended. Reload the page to sign in again.'
  const drawn = new Map() // the answer that each part was last drawn from
  let kept = null // what a swap would lose

  const isTyping = () => find('[data-live] :is(input:not([type="checkbox"], [type="radio"]), textarea, select):focus') !== null
  const isPressing = () => find('button:active, a:active') !== null // what is replaced between down and up gets no click
  const isQuiet = () => document.hidden || isSelecting() || isDialogOpen() || isTyping() || isPressing()
  document.addEventListener('htmx:beforeRequest', event => {
    if (event.target.matches('[data-live]') && isQuiet()) event.preventDefault()
  })

  document.addEventListener('htmx:beforeSwap', event => {
    const { xhr, requestConfig, target } = event.detail
    if (!target.matches?.('[data-live]') || xhr.status >= 300) return
    const asked = new URL(requestConfig.path, location.href), came = new URL(xhr.responseURL || asked, location.href)
    const isSame = drawn.get(target.id) === xhr.response
    if (came.pathname !== asked.pathname || isSame || isQuiet()) event.detail.shouldSwap = false
    say('trouble', came.pathname !== asked.pathname ? ENDED : '')
    if (!event.detail.shouldSwap) return
    drawn.set(target.id, xhr.response)
    const active = document.activeElement, row = active?.closest('tr[data-row]')
    kept = {
      id: active?.matches('summary') ? active.parentElement.id : active?.id, href: active?.getAttribute('href'), row: row?.dataset.row, isRow: active === row,
      open: all('details[open][id]', target).map(one => one.id),
      scrolled: all('[id]', target).filter(one => one.scrollLeft || one.scrollTop)
        .map(one => [one.id, one.scrollLeft, one.scrollTop]),
    }
  })

  document.addEventListener('htmx:afterSwap', () => {
    if (kept === null) return
    const { id, href, row, isRow, open, scrolled } = kept
    kept = null
    for (const one of open) byId(one)?.setAttribute('open', '')
    for (const [one, x, y] of scrolled) byId(one)?.scrollTo(x, y)
    tick()
    showSelections()
    if (document.activeElement !== document.body && document.activeElement !== null) return
    const again = row && find(`tr[data-row="${CSS.escape(row)}"]`)
    if (again && isRow) return goTo(again)
    const focus = (id && byId(id)) || (href && find(`a[href="${CSS.escape(href)}"]`, again || document))
    const summary = focus?.matches('details') && find('summary', focus)
    ;(summary || focus)?.focus({ preventScroll: true })
  })

  for (const name of ['htmx:responseError', 'htmx:sendError', 'htmx:timeout']) {
    document.addEventListener(name, event => { if (event.target.matches?.('[data-live]')) say('trouble', LOST) })
  }
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden) all('[data-live]').forEach(part => part.dispatchEvent(new Event('refresh')))
  })

  addEventListener('DOMContentLoaded', () => {
    const switched = find('[data-keys]')
    if (switched) switched.checked = areKeysOn()
    if (matchMedia('(max-width: 40rem)').matches) all('[data-folds]').forEach(one => { one.open = false })
    showSelections()
    tick()
    setInterval(tick, 1000)
  })
})()
