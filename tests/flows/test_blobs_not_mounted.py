"""The disk of the blobs is not mounted for a while: what names a blob waits, all else goes on, nothing is refused or dead."""

from __future__ import annotations

import json
import smtplib
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes.scripted_relay import ScriptedRelay
from flows.place import Place, a_mail, house_on, opened

sys.path.append(str(Path(__file__).parents[1] / "inbound"))
from pictures import encoded, upright

from gateway.contract.email_send import Attachment

LARGE = b"0123456789abcdef" * 32 * 1024


@pytest.mark.long  # what waits comes again after 30 s; the desks' own tests are tests/{inbound,outbound}, tests/store
async def test_a_blob_store_that_is_not_mounted_is_waited_for(tmp_path: Path) -> None:
    async with ScriptedRelay({}) as relay:
        house = house_on(tmp_path, relay.port, {"blobs_url": f"file://{tmp_path}/mnt"})
        async with opened(house, relay, f"sqlite:///{house.folder}/queue.db") as place:
            await _wait_for_the_disk(place, tmp_path / "mnt")
        assert house.balance()["missing"] == []


async def _wait_for_the_disk(place: Place, disk: Path) -> None:
    digest = (await place.post("/v1/blobs", LARGE))["digest"]
    disk.rename(disk.with_name("elsewhere"))
    disk.mkdir()
    named = Attachment(filename="plan.bin", blob=digest)
    email_id = await place.client.send("welcome", to="ann@example.org", params={"name": "Ann"}, attachments=[named])
    post_id = await place.client.create_post(author="Ann", title="the plan", attachments=[named])
    photo = a_mail("harbour", to="photos@localhost", files=[("harbour.jpg", "image/jpeg", encoded(upright(), "JPEG"))])
    mail_id = await place.mail(photo, "photos@localhost")
    with pytest.raises(smtplib.SMTPDataError) as refused:
        await place.mail(a_mail("large", files=[("large.bin", "application/octet-stream", LARGE)]), "posts@localhost")
    assert refused.value.smtp_code == 451

    async def all_have_tried() -> bool:
        told = [line for line in place.house.log().splitlines() if "again in 30 s" in line]
        return all(any(item in line for line in told) for item in (email_id, post_id, mail_id))

    await place.until(all_have_tried)
    other_id = await place.client.send("welcome", to="bob@example.org", params={"name": "Bob"})
    await place.email(other_id, "relayed")
    await place.delivered(await place.mail(a_mail("small"), "posts@localhost"))
    await place.email(email_id, "pending")
    assert await place.get(f"/v1/posts/{post_id}") is None, "neither stored nor failed"
    assert list(disk.iterdir()) == [], "nothing is written where the disk belongs"
    assert await place.rows("dead", "list") == []
    told = (await place.command("doctor", "--json")).stdout
    [finding] = [item for item in map(json.loads, told.splitlines()) if item["what"] == "blobs"]
    assert finding["level"] == "wrong"

    disk.rmdir()
    disk.with_name("elsewhere").rename(disk)
    await place.email(email_id, "relayed")
    await place.delivered(mail_id)

    async def found() -> dict[str, Any]:
        return await place.get(f"/v1/posts/{post_id}") or {}

    [item] = (await place.until(found))["attachments"]
    assert await place.get(f"/v1/attachments/{item['id']}") == LARGE
    assert await place.rows("dead", "list") == []
