"""The tasks that generators answer, the measures of their answers, tables and contact sheets."""
