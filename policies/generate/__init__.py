"""The kernel: every generative family read as one function, noisy actions in, clean actions out.

Between families only the noise angle travels:

    x = cos(phi) * action + sin(phi) * noise,        phi in [0, pi/2].

At phi = 0 the chunk is clean, at pi/2 it is pure noise; nothing diverges in between. `angle` has the grids that a
sampler walks, `forms` what a network is trained to answer, `energy` the same for energies, `sample` the samplers,
`compose` the mixing of denoisers.
"""
