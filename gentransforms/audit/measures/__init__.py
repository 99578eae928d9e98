"""The measures of an audit, one file for each part."""
