"""What all pages share: skeleton, style sheet, tables, figures, pictures, film."""
