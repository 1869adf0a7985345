"""Digital chest phantoms: CT, lobes, vessels, lesions with subtypes, and the scores of their lobes.

In the order in which a phantom comes about: `shapes` and `lobes` (anatomy), `vessels`, `body` (what surrounds the
lungs), `lesions`, `parenchyma` (density inside the lungs), `scanner` (grid, blur, noise), `chest` (one phantom),
`generate` (a data directory). `grid` and `texture` serve all of them.
"""
