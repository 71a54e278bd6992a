"""Vision-language agents: what they are asked, how their answers are read, and who pays for them."""
