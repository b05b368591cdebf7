# SPDX-License-Identifier: Apache-2.0
"""
Many requests in, saved objects out.

A row passes through ``rows`` (read and checked) → ``run`` (initial checks, row order) → ``pipeline`` (threads) → ``row_steps``
(send, then save) → ``report``. ``limiter``, ``budget`` and ``breakers`` decide whether the next request may be sent.
"""
