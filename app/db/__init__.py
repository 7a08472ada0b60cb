"""The database: sessions, tables, migrations, and the cursors of paged answers."""
