"""Studies around the lesson: equal time, key lines, Frechet distances, what people take for real."""
