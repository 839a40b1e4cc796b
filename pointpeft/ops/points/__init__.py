"""Operations on point coordinates and neighbourhoods."""
