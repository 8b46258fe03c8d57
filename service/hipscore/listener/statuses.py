"""What a C-STORE is answered (PS3.4 table B.2-1, PS3.7 9.1.1.1.9)."""

from __future__ import annotations

#: it is kept, durably
SUCCESS = 0x0000
#: Refused: Not Authorised: a report of somebody who is neither destination nor query peer
NOT_AUTHORISED = 0x0124
#: Refused: Out of Resources: no room or no database now; it may be sent again
OUT_OF_RESOURCES = 0xA700
#: Error: Cannot Understand (0xC000 to 0xCFFF): the object cannot be read
CANNOT_UNDERSTAND = 0xC210
#: likewise: it contradicts what is known of its study, or of itself
MISPLACED = 0xC211
#: likewise: a document that is no report of hipscore, and is not kept
NOT_OURS = 0xC212
