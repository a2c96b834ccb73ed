"""Who a sender really is: SPF, DKIM, ARC and DMARC looked up by us, or told by our own mail server.

Flow: ingest asks once a mail, the answer is stored with it; `who` (inbound.who), notices, `show` and `explain` read it there.
`authenticator` puts it together; every mechanism has its file: `spf`, `signatures` (with `signature_job` in the cage),
`dmarc`, `own_mta`; `header` reads strictly, `resolver` asks DNS, `result` is the value.
Promises: nothing a mail, a key or a name server says raises from here, blocks the event loop or costs more than its budget
(`resolver.Budget`, the cage's limits); what could not be looked up is `temperror` and never `fail`.
Limits: a proven domain vouches for its users; whether ann@ there is Ann is that domain's business.
This page itself imports no library, so that who only reads a result pays for none.
"""

from __future__ import annotations

from gateway.inbound.authenticate.result import NOT_JUDGED, Authentication, Result

__all__ = ["NOT_JUDGED", "Authentication", "Result"]
