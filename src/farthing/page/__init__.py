"""Pages: HTML files that need nothing else. The frame, figures and text as pages show them, and charts."""
