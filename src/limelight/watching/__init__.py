"""The parts of `limelight.watch`: what it holds, where in the model it is, and how it catches the calls."""
