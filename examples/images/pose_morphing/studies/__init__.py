"""Studies around the lesson: equal time, key lines, Frechet distances, what people think real."""
