"""Which regions of a photograph are lighter than the few that were clicked?"""
