"""What the program is compared with: methods of other people from the formulas of their papers, and other packages."""
