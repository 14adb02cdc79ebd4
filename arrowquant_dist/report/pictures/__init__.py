"""Pictures of a report as inline SVG: pure functions from figures to a picture.

Each is drawn 360 units wide, the width of a phone, so that its text is never smaller than its size here. On wider
screens several pictures are side by side. Colours are classes of the page (templates/page.css), so that they suit light
and dark mode.
"""
