"""The web page of ``dmgal app``: checks of uploads, the state of a visit, and the page itself."""
