"""How much of the lungs is affected: volumes in ml and shares."""
