# SPDX-License-Identifier: Apache-2.0
"""From a signed URL to an object in S3."""
