"""What the demo's page is made of: pictures that people choose, the mask they paint, the jobs, and the layout."""
