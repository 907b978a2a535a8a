"""Take the picture of the report that the transport page shows: ``python docs/screenshot.py docs/report.png``.

Needs Chromium with chromedriver. Designs Seville with the defaults, opens its report and points at a long link
with a large price, by which the map is coloured.
"""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from selenium import webdriver
from selenium.webdriver import ActionChains

from blocc.applications import transport

WIDTH, HEIGHT = 1000, 1190


def main(target: Path) -> None:
    plan = transport.design(transport.load("seville"), on_failure="return")
    network = plan.network
    length = np.hypot(*(network.positions[network.head] - network.positions[network.tail]).T)
    seen = np.where(plan.capacity > 0, plan.answer.price, 0.0) * length
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with tempfile.TemporaryDirectory() as folder:
        report = plan.write(folder)["report.html"]
        browser = webdriver.Chrome(options=options, service=service)
        try:
            browser.set_window_size(WIDTH, HEIGHT + 200)
            browser.get(report.as_uri())
            browser.execute_script("document.querySelector('button[value=price]').click()")
            place = browser.execute_script(
                "const map = document.getElementById('map'), axes = map._fullLayout;"
                "const trace = map._fullData.find(t => t.name === 'links');"
                "const box = map.getBoundingClientRect(), k = arguments[0];"
                "return [box.left + axes.xaxis._offset + axes.xaxis.l2p(trace.x[k]),"
                " box.top + axes.yaxis._offset + axes.yaxis.l2p(trace.y[k])]",
                len(plan.capacity) + int(seen.argmax()),
            )
            mouse = ActionChains(browser)
            for shift in (-2, 0):
                mouse.w3c_actions.pointer_action.move_to_location(
                    round(place[0]) + shift, round(place[1])
                )
            mouse.perform()
            top = browser.execute_script(
                "return document.querySelector('section').getBoundingClientRect().top"
            )
            time.sleep(1.0)  # the hover box fades in
            picture = browser.execute_cdp_cmd(
                "Page.captureScreenshot",
                {"clip": {"x": 0, "y": top, "width": WIDTH, "height": HEIGHT - top, "scale": 1}},
            )
        finally:
            browser.quit()
    target.write_bytes(base64.b64decode(picture["data"]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/report.png"))
