"""The live server: calls over WebSockets, in the protocol of the Moshi and PersonaPlex servers.

`protocol` and `opus` serve clients too; nothing here is imported by the engine.
"""
