# SPDX-License-Identifier: Apache-2.0
"""
Many requests in, saved objects out.

A row goes: ``rows`` (read and checked) → ``run`` (what is checked first, and the order) → ``pipeline`` (threads) → ``row_steps``
(send, then save) → ``report``. ``limiter``, ``budget`` and ``breakers`` decide whether the next request is sent.
"""
