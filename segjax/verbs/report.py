"""One self-contained HTML page of a run, or of several side by side: curves, IoU, confusion, pictures.

What is read (nothing else, so the page can be made on another machine, of a run that is still going):

    DIR/NN-STAGE/                      one folder a stage as `segjax run` leaves it; or DIR itself is one stage as `segjax train` leaves it
      config.json                      the resolved config of the stage
      run.json                         {"command", "started", "versions": {name: version}, "devices": [...], "mesh", "git", ...}; any subset
      metrics.jsonl                    {"step": 100, "loss/ce": 1.23, "images_per_sec": ...} lines; a half-written last line is skipped
      done.json                        its presence marks the stage as finished
      eval/DATASET-SPLIT.json          the newest score, as `segjax evaluate` writes it:
          {"dataset": "dusk", "split": "val", "step": 500, "images": 62, "miou": 0.39, "classes": ["sky", ...], "palette": [[r,g,b], ...],
           "iou": [0.8, null, ...] (null = class absent), "confusion": [[...], ...] (rows = truth)}
      eval/DATASET-SPLIT/samples/      up to N=6 evenly spaced images of that data set, the same ones for every stage:
          NAME.image.jpg               the photograph at evaluation size
          NAME.truth.png               the label in the palette's colours, ignored pixels black (absent when there is no label)
          NAME.prediction.png          the prediction in the palette's colours

Several DIRs are taken as repetitions (seeds) of one experiment: equal stage names are put side by side as mean +- spread (half the
range from the worst to the best run).
"""
