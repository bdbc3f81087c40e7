"""What the three scripts share. Each package or module imports only from those named before it.

start, job, errors: Ctrl-C, processes and their output, one line for the user's mistakes
files, cli: atomic files with sums, locks; flags
data, reporting: image sets, packed caches, augmentation; results, tables, figures, pages
training: the recipe, the loop, checkpoints, trainings and processes side by side
networks: networks, and instruments that measure them, each of which works alone
studies: parts of experiments that are too long for a script
"""
