"""`pyvtep doctor`: what is wrong between this host and the other VTEPs, and what mends it.

Facts are gathered from the host, its network and the pyvtep that runs (`host`, `echo`, `remote`,
`running`); what is wrong follows from them alone (`findings`, `firewall`).
"""
