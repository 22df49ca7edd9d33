"""What a run came to, and what stands in a sample.

render.write_report makes RUN/report.html; describe.describe_sample and draw.draw_sample show one sample as text and as a
picture; rebuild.rebuild_frames gives the clip back as the evidence tells it.
"""
