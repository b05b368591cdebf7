# SPDX-License-Identifier: Apache-2.0
"""
Copies files from signed URLs to objects in S3.

A file passes through ``copier`` (one file, with download retries) → ``download`` (one GET, over ``kept_connections``,
checked by ``network_guard``) → ``spool`` (memory, then disk) → ``store`` (one PutObject). Before that, ``plan`` and
``keys`` decide where files go; afterwards, ``lineage`` reports where they are.
"""
