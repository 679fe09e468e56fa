// A text in which names are marked. What is selected in it, or a marked name that is picked, is sent to Python as
// {start, end, type}: `type` is "" for no name, offsets count code points. JavaScript counts UTF-16 code units, of which
// an emoji has two or more; Array.from cuts a string into code points. The text goes into text nodes only, so whatever
// it holds is shown and never read as HTML.

const lengthOf = (text) => Array.from(text).length

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".marking")
  const text = root.querySelector(".marking-text")
  const chosenWords = root.querySelector(".marking-chosen")
  const buttons = root.querySelector(".marking-buttons")
  let chosen = null

  const choose = (place) => {
    chosen = place
    const isNothing = !place || !place.words.trim()
    chosenWords.textContent = isNothing ? data.hint : place.words
    chosenWords.classList.toggle("marking-hint", isNothing)
    for (const button of buttons.children) button.disabled = isNothing
  }

  const readSelection = () => {
    const selection = document.getSelection()
    if (!selection.rangeCount) return
    const isHere = [selection.anchorNode, selection.focusNode].some((node) => text.contains(node))
    // Elsewhere, as on one of the buttons, it leaves what was chosen here.
    if (!isHere) return
    if (selection.isCollapsed) return choose(null)
    // A triple click selects up to the start of what follows the text.
    const range = selection.getRangeAt(0)
    const inside = document.createRange()
    inside.selectNodeContents(text)
    if (range.compareBoundaryPoints(Range.START_TO_START, inside) > 0) inside.setStart(range.startContainer, range.startOffset)
    if (range.compareBoundaryPoints(Range.END_TO_END, inside) < 0) inside.setEnd(range.endContainer, range.endOffset)
    const before = document.createRange()
    before.selectNodeContents(text)
    before.setEnd(inside.startContainer, inside.startOffset)
    const words = inside.toString()
    const start = lengthOf(before.toString())
    choose({ start, end: start + lengthOf(words), words })
  }

  const draw = () => {
    const points = Array.from(data.text)
    const piece = (start, end) => document.createTextNode(points.slice(start, end).join(""))
    const nodes = []
    let place = 0
    for (const { start, end, type } of data.entities) {
      const style = data.types[type]
      const mark = document.createElement("mark")
      mark.append(piece(start, end))
      mark.dataset.tag = style.tag
      mark.style.setProperty("--ink", style.ink)
      mark.style.setProperty("--tint", style.tint)
      mark.style.borderBottomStyle = style.underline
      mark.tabIndex = 0
      mark.setAttribute("role", "button")
      mark.setAttribute("aria-label", `${mark.textContent}, ${style.one}`)
      const pick = () => {
        document.getSelection().selectAllChildren(mark)
        choose({ start, end, words: mark.textContent })
      }
      mark.onclick = () => document.getSelection().isCollapsed && pick()
      mark.onkeydown = (event) => {
        if (event.key !== "Enter" && event.key !== " ") return
        event.preventDefault()
        pick()
      }
      nodes.push(piece(place, start), mark)
      place = end
    }
    text.replaceChildren(...nodes, piece(place, points.length))
  }

  const drawButtons = () => {
    const labels = Object.entries(data.types).map(([type, style]) => [type, style.one])
    buttons.replaceChildren(
      ...[...labels, ["", data.none]].map(([type, label]) => {
        const button = document.createElement("button")
        button.type = "button"
        button.textContent = label
        button.onmousedown = (event) => event.preventDefault() // which would end the selection
        button.onclick = () => {
          const { start, end } = chosen
          document.getSelection().removeAllRanges()
          choose(null)
          setTriggerValue("mark", { start, end, type })
        }
        return button
      }),
    )
  }

  draw()
  drawButtons()
  choose(null)
  // Streamlit calls this function again for new data: one listener at a time.
  document.removeEventListener("selectionchange", root.readSelection)
  root.readSelection = readSelection
  document.addEventListener("selectionchange", readSelection)
  return () => document.removeEventListener("selectionchange", root.readSelection)
}
