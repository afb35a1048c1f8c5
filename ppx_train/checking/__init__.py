"""Whether data, model and machine are fit for a run, before it: `ppx-train check`. It must not know of serving."""
